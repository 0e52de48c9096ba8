"""Looking at what a run would do, or has done, without doing it."""
