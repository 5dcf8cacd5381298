"""What use costs: prices with a date from which they hold, costs of tenants, people and runs, invoices."""
