"""Benchmarks: `python -m bench NAME[,NAME]`. Each figure stands beside a ceiling from the same run."""
