"""Who may see what, and the files that say so."""
