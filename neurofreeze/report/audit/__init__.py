"""The page of an audit: table, verdict, figures."""
