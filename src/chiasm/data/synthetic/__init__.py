"""Images made from known contents, so that every answer about them is exact."""
