"""From the bytes of a file to the pixels for an extractor."""
