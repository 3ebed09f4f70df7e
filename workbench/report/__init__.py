"""What the samples of a campaign say: figures, a page, and a gate for continuous integration."""
