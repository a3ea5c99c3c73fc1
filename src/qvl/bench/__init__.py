"""What is timed and how it is reported: questions and decoding beside a peer, and native ops beside composed ones."""
