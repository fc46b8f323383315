"""Files to facts: the rows of any table, the shipped facts, and the five states that a fact is asked in."""
