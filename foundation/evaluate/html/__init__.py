"""Reports as single HTML files: nothing in them refers to another file or address."""
