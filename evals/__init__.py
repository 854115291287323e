"""What judges: parsers, metrics, benchmarks, judges and the report. Never imports ``align`` or torch."""
