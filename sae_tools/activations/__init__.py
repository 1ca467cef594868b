"""From contexts of tokens to batches of rows: one forward pass serves every site, a buffer shuffles whole rows."""
