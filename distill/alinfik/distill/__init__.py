"""Labels text with LinFiK and distils a proxy from the labels.

Modules, in the order of the data: `readers`, `samples`, `survey` → `text_template`, `encoding` →
`batches` → `llm`, `adapter`, `losses`, `selection`, `recipe` → `target`, `forward_mode`,
`reverse_mode` → `labeller`, `shards`, `ray_shards` → `provenance`, `labels` → `splits` → `proxy`,
`fit`, `checkpoint` → `intervals`, `calibrate` → `export` → `baselines`, `measure` → `plots`,
`report`, `bundle`. The commands are `label`, `train` and `evaluate`; `settings` says how they are
configured, and `disk` writes files whole.
"""
