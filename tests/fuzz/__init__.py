"""Coverage-guided fuzzing of every reader of files that this package owns."""
