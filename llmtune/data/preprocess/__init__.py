"""How the rows of the catalogue's data sets become rows that `data.formats` knows: pure functions, one row each."""
