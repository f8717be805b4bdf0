"""One configuration file for each experiment; `--config.field=value` overrides a field."""
