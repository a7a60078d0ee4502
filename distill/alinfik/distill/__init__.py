"""Labels text with LinFiK and distils a proxy from the labels.

Modules, in the order of the data: `readers`, `samples`, `survey` → `encoding` → `batches` → `llm`,
`losses`, `selection`, `target`, `forward_mode`, `reverse_mode` → `labeller`, `labels` → `splits` →
`proxy`, `fit` → `calibrate` → `export` → `measure` → `report`, `bundle`. The commands are `label`,
`train` and `evaluate`.
"""
