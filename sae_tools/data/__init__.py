"""Where text comes from: documents of any source, packed into contexts of tokens, at a position one can return to."""
