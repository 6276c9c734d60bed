"""The document of ``snzoo eval --json`` → one HTML page that stands by itself."""
