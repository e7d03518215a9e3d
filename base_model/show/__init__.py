"""What was found, for people. In: tables of the other rooms. Out: charts, words, a report."""
