"""Reading and writing files of any layout, as the `format` of a card declares it."""
