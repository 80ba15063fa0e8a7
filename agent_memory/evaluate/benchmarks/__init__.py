"""Public long-context benchmarks, read from files a user has: LongBench, L-Eval, InfiniteBench and LoCoMo."""
