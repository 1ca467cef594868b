"""Small language models trained from scratch: the bundled one, and controls for what a study finds in others."""
