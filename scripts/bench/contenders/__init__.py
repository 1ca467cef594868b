"""Who is measured: sae_tools, its peers and the bare product, each as a function that takes one whole training step.

A whole step is what the library's own training loop does with a batch of activations once it is there: selection,
reconstruction, loss, gradients, clipping (where the library clips), optimiser, decoder norms (where it keeps them) and
counters. All start from the same weights on the same rows.
"""
