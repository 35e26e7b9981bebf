/* Start Swagger UI. No validator: it would send the address of this service to another host. */

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
