"""Benchmarks: how fast each engine is, what it costs in mIoU, and the page that shows both."""
