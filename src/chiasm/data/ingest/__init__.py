"""Samples from what people have: PDF files, web pages, videos."""
