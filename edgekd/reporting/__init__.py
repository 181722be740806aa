"""The parts of a report: numbers, the table, the answer in words, facts, and figures as SVG."""
