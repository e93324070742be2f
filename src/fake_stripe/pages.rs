//! What people see: checkout, the portal, an invoice. Forms without scripts; a POST does what it says and sends on with 303.

use axum::response::Response;

use super::FakeStripe;
use super::answer::ApiError;
use super::billing::ItemChange;
use super::door::{Sent, response, set};
use super::form::Form;
use super::objects::{Checkout, Flow, Invoice, PortalSession, Subscription};
use super::world::{World, missing};

/// A page, or where to go from here.
enum Shown {
    Page(String),
    Gone(String),
}

pub fn answer(fake: &FakeStripe, sent: &Sent) -> Response {
    let path: Vec<&str> = sent.path.split('/').skip(1).collect();
    let shown = match (sent.method.as_str(), path.as_slice()) {
        ("GET" | "HEAD", ["checkout", id]) => fake.lock().checkout_page(id, ""),
        ("GET" | "HEAD", ["portal", id]) => fake.lock().portal_page(id, ""),
        ("GET" | "HEAD", ["invoice", id]) => fake.lock().invoice_page(id),
        ("POST", ["checkout", id]) => posted(fake, sent, |world, form| world.checkout_post(id, form)),
        ("POST", ["portal", id]) => posted(fake, sent, |world, form| world.portal_post(id, form)),
        ("POST", ["invoice", id]) => posted(fake, sent, |world, _| {
            world.pay_invoice(id)?;
            Ok(Shown::Gone(format!("/invoice/{id}")))
        }),
        _ => Err(ApiError::no_such_path(&sent.method, &sent.path)),
    };
    match shown {
        Ok(Shown::Page(inner)) => response(200, "text/html; charset=utf-8", page(&inner)),
        Ok(Shown::Gone(to)) => {
            let mut answer = response(303, "text/html; charset=utf-8", String::new());
            set(&mut answer, "location", &to);
            answer
        }
        Err(error) => {
            let inner = format!("<h1>Something went wrong</h1><p>{}</p>", escaped(&error.message));
            response(error.status, "text/html; charset=utf-8", page(&inner))
        }
    }
}

fn posted(fake: &FakeStripe, sent: &Sent, post: impl FnOnce(&mut World, &Form) -> Result<Shown, ApiError>) -> Result<Shown, ApiError> {
    let form = Form::parse(&sent.body)?;
    fake.change(|world| post(world, &form))
}

impl World {
    fn checkout_page(&mut self, id: &str, told: &str) -> Result<Shown, ApiError> {
        self.expire_what_is_due();
        let session = self.objects.checkouts.get(id).ok_or_else(|| missing::<Checkout>(id))?;
        if session.status != "open" {
            return Ok(Shown::Page(format!("<h1>This checkout is {}</h1>", session.status)));
        }
        let lines = session.lines.iter().map(|(price, quantity)| {
            let count = quantity.map(|quantity| format!("{quantity} × ")).unwrap_or_default();
            format!("<li>{count}{}</li>", self.named(price))
        });
        let lines: String = lines.collect();
        let back = session.cancel_url.as_ref().map(|url| format!("<p><a href=\"{}\">Back</a></p>", escaped(url)));
        Ok(Shown::Page(format!(
            "<h1>Subscribe</h1>{told}<ul>{lines}</ul>{}{}{}",
            button("Pay", &[("action", "pay")]),
            button("Pay with a card that is declined", &[("action", "decline")]),
            back.unwrap_or_default(),
        )))
    }

    fn checkout_post(&mut self, id: &str, form: &Form) -> Result<Shown, ApiError> {
        if form.get("action") == Some("pay") {
            return self.complete_checkout(id).map(Shown::Gone);
        }
        self.checkout_page(id, "<p class=\"told\">Your card was declined.</p>")
    }

    fn portal_page(&self, id: &str, told: &str) -> Result<Shown, ApiError> {
        let session = self.objects.portals.get(id).ok_or_else(|| ApiError::not_found("billing_portal.session", id))?;
        let flow = match &session.flow {
            None => String::new(),
            Some(Flow::PaymentMethodUpdate { .. }) => {
                format!("<h2>Your card</h2>{}", button("Save a card that is good", &[("action", "flow")]))
            }
            Some(Flow::SubscriptionUpdateConfirm { price, .. }) => {
                format!("<h2>Change to {}?</h2>{}", self.named(price), button("Confirm", &[("action", "flow")]))
            }
        };
        let owned = self.objects.subscriptions.of(Some(&session.customer)).into_iter();
        let running = owned.filter(|(_, one)| !one.is_over()).map(|(_, one)| self.subscription_part(one));
        let parts: String = running.collect();
        let card = button("Save a card that is good, and pay what is open", &[("action", "payment_method")]);
        let bad = button("Save a card that will be declined", &[("action", "bad_payment_method")]);
        let back = session.return_url.as_ref().map(|url| format!("<p><a href=\"{}\">Back</a></p>", escaped(url)));
        Ok(Shown::Page(format!(
            "<h1>Billing of {}</h1>{told}{flow}{parts}{card}{bad}{}",
            escaped(&session.customer),
            back.unwrap_or_default()
        )))
    }

    /// A subscription in the portal: what it has, and what can be done to it.
    fn subscription_part(&self, subscription: &Subscription) -> String {
        let id = subscription.id.as_str();
        let items: Vec<String> = subscription.items.iter().map(|item| self.named(&item.price)).collect();
        let others = self.objects.prices.newest_first().map(|(_, price)| price);
        let others = others.filter(|price| price.active && price.recurring.is_some());
        let others = others.filter(|price| subscription.items.iter().all(|item| item.price != price.id));
        let switches = others.map(|price| {
            let label = format!("Change to {}", self.named(&price.id));
            button(&label, &[("action", "switch"), ("subscription", id), ("price", price.id.as_str())])
        });
        let switches: String = if subscription.items.len() == 1 { switches.collect() } else { String::new() };
        let end = if subscription.cancel_at_period_end {
            button("Do not cancel", &[("action", "resume"), ("subscription", id)])
        } else {
            button("Cancel at the end of the period", &[("action", "cancel"), ("subscription", id)])
        };
        format!("<h2>{} ({})</h2>{switches}{end}", items.join(", "), escaped(&subscription.status))
    }

    fn portal_post(&mut self, id: &str, form: &Form) -> Result<Shown, ApiError> {
        let session = self.objects.portals.get(id).ok_or_else(|| ApiError::not_found("billing_portal.session", id))?.clone();
        let done = self.portal_act(&session, form);
        match done {
            Ok(to) => Ok(Shown::Gone(to.or(session.return_url).unwrap_or_else(|| format!("/portal/{id}")))),
            Err(error) if error.status == 402 => self.portal_page(id, &format!("<p class=\"told\">{}</p>", escaped(&error.message))),
            Err(error) => Err(error),
        }
    }

    /// Gives where the customer is sent, where that is not the session's `return_url`.
    fn portal_act(&mut self, session: &PortalSession, form: &Form) -> Result<Option<String>, ApiError> {
        let customer = session.customer.as_str();
        match form.required("action")? {
            "flow" => return self.finish_flow(&session.id),
            "payment_method" => self.mend_payment(customer)?,
            "bad_payment_method" => self.set_card(customer, super::objects::Card::Declined)?,
            action => {
                let subscription = form.required("subscription")?;
                // A session is for one customer's subscriptions.
                let item = match self.subscription(subscription)? {
                    known if known.customer == customer => known.items.first().map(|item| item.id.clone()),
                    _ => return Err(missing::<Subscription>(subscription)),
                };
                match action {
                    "switch" => {
                        let price = form.required("price")?;
                        self.portal_can_change(customer, subscription, item.as_deref().unwrap_or_default(), price, None)?;
                        let change = ItemChange { id: item, price: Some(price.to_owned()), ..ItemChange::default() };
                        self.confirm_change(subscription, change)?;
                    }
                    "cancel" => self.cancel_at_period_end(subscription, true)?,
                    "resume" => self.cancel_at_period_end(subscription, false)?,
                    _ => return Err(ApiError::invalid("action", format!("Nobody can {action} here."))),
                }
            }
        }
        Ok(None)
    }

    fn invoice_page(&self, id: &str) -> Result<Shown, ApiError> {
        let invoice = self.objects.invoices.get(id).ok_or_else(|| missing::<Invoice>(id))?;
        let pay = if invoice.status == "open" { button("Pay", &[]) } else { String::new() };
        let (whole, cents) = (invoice.amount / 100, invoice.amount % 100);
        Ok(Shown::Page(format!("<h1>Invoice of {whole}.{cents:02} USD</h1><p>It is {}.</p>{pay}", escaped(&invoice.status))))
    }

    /// A price, for people: its product's name and what it costs.
    fn named(&self, price: &str) -> String {
        let Some(known) = self.objects.prices.get(price) else { return escaped(price) };
        let product = self.objects.products.get(&known.product).map_or(known.product.as_str(), |product| product.name.as_str());
        let every = known.recurring.as_ref().map(|recurring| format!(" a {}", recurring.interval)).unwrap_or_default();
        let (whole, cents) = (known.unit_amount / 100, known.unit_amount % 100);
        escaped(&format!("{product} ({price}), {whole}.{cents:02} USD{every}"))
    }
}

/// A form of one button, which posts to the page itself.
fn button(label: &str, fields: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escaped(value));
    let fields: String = fields.iter().map(field).collect();
    format!("<form method=\"post\">{fields}<button>{label}</button></form>")
}

fn page(inner: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Fake Stripe</title><style>body{{font:16px/1.5 sans-serif;\
         max-width:40rem;margin:3rem auto;padding:0 1rem}}form{{margin:.5rem 0}}button{{font:inherit;padding:.3rem .8rem}}\
         .told{{color:#b00}}</style></head><body><p>Fake Stripe: no money moves.</p>{inner}</body></html>"
    )
}

/// Text as HTML shows it, in attributes too.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_write_cannot_become_markup() {
        assert_eq!(escaped("<a href='x'>\"&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt;");
    }
}
