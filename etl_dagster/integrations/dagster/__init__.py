"""Assets, resources and the sensor."""
