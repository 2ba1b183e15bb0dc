"""What stands between a file's bytes and the pixels that an extractor sees."""
