"""Each function of ``engine._fast`` against its plain-Python twin, on named inputs.

Run it with ``python -m bench.micro`` (or ``make bench-micro``).
"""
