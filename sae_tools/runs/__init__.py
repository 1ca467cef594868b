"""The run directory: its layout, and files that appear whole or not at all.

    runs/<name>/
      config.yaml                        the configuration, resolved
      metrics.jsonl                      one line per logged step
      <dictionary>/checkpoints/<tokens>/ what others read and what --resume reads
      <dictionary>/density/<window>.safetensors
      state/<tokens>.json                written last: the checkpoint at <tokens> is complete, and where the data stood
      analysis/

`atomic` writes, `tensors` and `density` are the formats, `checkpoints` says which are complete, `directory` puts it
together. No pickle anywhere.
"""
