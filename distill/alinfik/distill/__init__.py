"""Labels text with LinFiK and distils a proxy from the labels.

Modules, in the order of the data: `samples` → `encoding` → `batches` → `llm`, `linfik` → `label` →
`labels` → `splits` → `proxy`, `fit` → `calibrate` → `export` → `measure` → `report`, `bundle`. The
commands are `label`, `train` and `evaluate`.
"""
