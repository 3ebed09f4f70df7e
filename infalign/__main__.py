"""``python -m infalign``, for launchers that start modules: ``accelerate launch -m infalign train ...``."""

from infalign.cli import main

main()
