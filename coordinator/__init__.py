"""The coordinator: enforces batch alignment and the λ schedule, answers predictions with soft targets, keeps the log."""
