// Addresses are relative to the page, so that they hold behind a prefix of a proxy too.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
