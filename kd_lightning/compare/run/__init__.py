"""Worker processes, the training of one run, and the progress display."""
