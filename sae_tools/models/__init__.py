"""Language models as the rest of the package sees them: loaded raw through TransformerBridge, read and edited at sites.

`locate` finds a model by name, `load` makes it a `language_model`; `sites` turns `mlp_out@3` into a hook point;
`final_norm` and `mlp` are its last norm, unembedding and MLP output map as plain tensors; `plain` is a fast view of
the same parameters; `capture` reads sites in one forward pass that stops early; `intervene` edits them and runs on;
`parameters` counts them, `size` FLOPs.
"""
