"""Command line of pixart. Importing it never imports torch."""
