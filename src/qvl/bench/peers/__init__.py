"""Programs that `qvl bench --against` runs with the peer's own Python: single files that know nothing of qvl."""
