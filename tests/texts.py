"""A question, and texts of both languages of which the first two answer it."""

QUERY = "Why was the bridge closed?"
TEXTS = [
    "The bridge was closed after the flood.",
    "洪水过后，这座桥被关闭了。",
    "How a JSON file is read in Python.",
    "The central bank raised interest rates.",
]
