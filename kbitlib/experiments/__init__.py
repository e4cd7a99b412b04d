"""What is run: functions from settings to tables of records."""
