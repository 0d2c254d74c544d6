"""The model: its file, its runtime, its reasons; how it is trained and what it is worth."""
