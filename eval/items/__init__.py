"""Files to facts: rows of any table, the shipped facts, and the five states a fact is asked in."""
