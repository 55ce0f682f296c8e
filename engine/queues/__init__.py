"""Where messages wait: scheduled queues (by tenant, campaign, domain) and ready queues (by path).

`retry` and `limits` are pure arithmetic with the time as an argument. `scheduled` holds what is
due later or waits for room; `ready` holds what some session may send now.
"""
