"""Random questions, controls, processors and ends, through both doors, against three other ways of asking."""
