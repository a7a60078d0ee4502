"""Labels text with LinFiK and distils a proxy from the labels.

`commands` has the sub-commands of `alinfik-distill`; docs/architecture.md names the modules in the
order of the data. `settings` says how commands are configured, and `disk` writes files whole.
"""
