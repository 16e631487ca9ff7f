"""The operations on a GPU: each module measures one, checks nothing (the tests do) and keeps its rows."""
