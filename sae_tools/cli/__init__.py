"""One file per command: parse, call, print. Torch is imported inside the commands, so that `--help` is quick."""
