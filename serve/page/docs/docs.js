// Shows the description of the HTTP API with Swagger UI, from this server's own files.

if (window.SwaggerUIBundle) {
  window.SwaggerUIBundle({ dom_id: '#api', url: '../openapi.json', deepLinking: true });
} else {
  document.getElementById('api').innerHTML =
    '<p>The server lacks Swagger UI, which <code>make page</code> installs. '
    + 'The description of this API is at <a href="../openapi.json">openapi.json</a>.</p>';
}
