"""One HTML page that shows the results of ``snzoo eval --json``, or training runs."""
