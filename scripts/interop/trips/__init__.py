"""Round trips of dictionaries: ours through the libraries whose formats we write, and theirs through us."""
